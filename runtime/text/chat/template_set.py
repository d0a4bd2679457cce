"""The chat templates of an engine, and the choice of one for a conversation."""

from __future__ import annotations

from collections.abc import Mapping

from enginewright.runtime.errors import RequestError
from enginewright.runtime.text.chat.conversation import Conversation
from enginewright.runtime.text.chat.template import ChatTemplate

DEFAULT, WITH_TOOLS = "default", "tool_use"


class TemplateSet:
    """Chat templates by name; created by `Tokenizer.load`.

    sources: text of each template, none where the checkpoint has none; an only one is called "default".
    special: the tokenizer's special tokens by name, such as bos_token.
    where: the file that the templates are from, for error messages.
    """

    def __init__(self, sources: Mapping[str, str], special: Mapping[str, str], *, where: str) -> None:
        self._special = special
        self._where = where
        named = {name: where if len(sources) == 1 else f"{where}: {name!r}" for name in sources}
        self._known = ", ".join(sources) or "there are none"
        self._templates = {name: ChatTemplate(source, special, where=named[name]) for name, source in sources.items()}

    def reads(self) -> dict[str, list[str]]:
        """Return the variables that each template reads, by its name.

        Raises:
            RequestError: one is no valid template.
        """
        return {name: sorted(template.reads()) for name, template in self._templates.items()}

    def render(self, conversation: Conversation) -> str:
        """Return the conversation as text, written through the template that it names or, where it names none, is for it.

        Raises:
            RequestError: there is no such template, or it rejects the conversation.
        """
        return self._choose(conversation).render(conversation)

    def _choose(self, conversation: Conversation) -> ChatTemplate:
        """Return the template: the one asked for, else that for tools if there are any, else the default one."""
        wanted = conversation.chat_template
        if wanted is None:
            wanted = WITH_TOOLS if conversation.tools is not None and WITH_TOOLS in self._templates else DEFAULT
        elif wanted not in self._templates:
            return self._open(wanted)
        if not self._templates:
            raise RequestError(
                "chat: the engine's tokenizer has no chat template; as those of base models; pass one as chat_template (--chat-template), or a plain prompt"
            )
        if wanted not in self._templates:
            raise RequestError(
                f"{self._where}: got several chat templates and no default, expected a choice; "
                f"pass one of {self._known} as chat_template"
            )
        return self._templates[wanted]

    def _open(self, source: str) -> ChatTemplate:
        """Return the template of this text, which the caller has given."""
        template = ChatTemplate(source, self._special, where="chat_template")
        if "messages" not in template.reads():
            shown = repr(source if len(source) <= 60 else f"{source[:60]}...")
            raise RequestError(
                f"chat_template: got {shown}, expected the name of one of the engine's templates "
                f"({self._known}), or the text of one, which reads messages"
            )
        return template
