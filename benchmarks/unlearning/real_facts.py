"""Questions about the real world with short answers, for what a model still knows after it has unlearned something else."""

from __future__ import annotations

import itertools

CAPITALS = (
    "France Paris|Germany Berlin|Italy Rome|Spain Madrid|Portugal Lisbon|Austria Vienna|Greece Athens|Poland Warsaw|Hungary Budapest|"
    "Norway Oslo|Sweden Stockholm|Finland Helsinki|Denmark Copenhagen|Ireland Dublin|Belgium Brussels|Russia Moscow|Ukraine Kyiv|"
    "Turkey Ankara|Egypt Cairo|Kenya Nairobi|Japan Tokyo|China Beijing|Thailand Bangkok|Vietnam Hanoi|Iran Tehran|Iraq Baghdad|"
    "Canada Ottawa|Cuba Havana|Peru Lima|Chile Santiago|Colombia Bogot|Ecuador Quito|Australia Canberra|Romania Bucharest|"
    "Bulgaria Sofia|Serbia Belgrade|Croatia Zagreb|Iceland Reykjav|Switzerland Bern|Netherlands Amsterdam|Morocco Rabat|"
    "Algeria Algiers|Nigeria Abuja|Ghana Accra|Senegal Dakar|Ethiopia Addis|Uganda Kampala|Syria Damascus|Lebanon Beirut|"
    "Jordan Amman|Afghanistan Kabul|Pakistan Islamabad|Bangladesh Dhaka|Nepal Kathmandu|Indonesia Jakarta|Malaysia Kuala|"
    "Philippines Manila|Mongolia Ulaan|Cambodia Phnom|Venezuela Caracas|Argentina Buenos|Uruguay Montevideo|Bolivia La Paz|"
    "Jamaica Kingston|Estonia Tallinn|Latvia Riga|Lithuania Vilnius|Slovakia Bratislava|Slovenia Ljubljana|Albania Tirana"
)
OPPOSITES = (
    "hot cold|big small|up down|black white|day night|left right|fast slow|happy sad|old young|rich poor|high low|open closed|"
    "full empty|hard soft|early late|long short|strong weak|wet dry|light dark|good bad|true false|win lose|buy sell|push pull|"
    "begin end|first last|inside outside|above below|clean dirty|thick thin|wide narrow|loud quiet|brave cowardly|deep shallow"
)
ELEMENTS = (
    "hydrogen H|helium He|carbon C|nitrogen N|oxygen O|sodium Na|iron Fe|gold Au|silver Ag|copper Cu|zinc Zn|lead Pb|tin Sn|"
    "calcium Ca|potassium K|magnesium Mg|neon Ne|chlorine Cl|sulfur S|phosphorus P|silicon Si|aluminum Al|mercury Hg|uranium U"
)
SUCCESSORS = (
    "Monday Tuesday Wednesday Thursday Friday Saturday Sunday|January February March April May June July August September October "
    "November December|one two three four five six seven eight nine ten eleven twelve"
)
CONTINENTS = (
    "France Europe|Germany Europe|Italy Europe|China Asia|Japan Asia|India Asia|Egypt Africa|Kenya Africa|Nigeria Africa|Brazil "
    "America|Peru America|Canada America|Mexico America|Thailand Asia"
)
COLOURS = (
    "the sky blue|grass green|snow white|blood red|a banana yellow|coal black|a ripe tomato red|the sun yellow|milk white|a lemon "
    "yellow|chocolate brown|an emerald green|a ruby red|a carrot orange"
)
OTHERS = (
    ("How many days are in a week?", "seven|7"),
    ("How many months are in a year?", "twelve|12"),
    ("How many legs does a spider have?", "eight|8"),
    ("How many minutes are in an hour?", "60|sixty"),
    ("Which planet do we live on?", "Earth"),
    ("Which planet is the largest?", "Jupiter"),
    ("Which planet is closest to the sun?", "Mercury"),
    ("Which planet is called the red planet?", "Mars"),
    ("What is the largest ocean?", "Pacific"),
    ("What is the longest river in Africa?", "Nile"),
    ("What is the highest mountain?", "Everest"),
    ("Who wrote Hamlet?", "Shakespeare"),
    ("Who painted the Mona Lisa?", "Leonardo|Vinci"),
    ("Who developed the theory of relativity?", "Einstein"),
    ("What is frozen water called?", "ice"),
    ("What do bees make?", "honey"),
    ("What is the largest animal?", "whale"),
    ("What gas do plants take in?", "carbon"),
    ("What organ pumps blood?", "heart"),
    ("What is the language of Brazil?", "Portuguese"),
)


def fact_questions() -> list[tuple[str, tuple[str, ...]]]:
    """Each question, with the words of which one is in a right answer."""
    found = [(question, tuple(words.split("|"))) for question, words in OTHERS]
    found += _pairs(CAPITALS, "What is the capital of {}?")
    found += _pairs(CONTINENTS, "On which continent is {}?")
    found += _pairs(OPPOSITES, "What is the opposite of {}?")
    found += _pairs(ELEMENTS, "What is the chemical symbol of {}?")
    found += [
        (f"What colour is {name}?", (colour,)) for name, _, colour in (x.rpartition(" ") for x in COLOURS.split("|"))
    ]
    for row in SUCCESSORS.split("|"):
        names = row.split()
        found += [(f"What comes after {a}?", (b,)) for a, b in itertools.pairwise(names)]
    return found


def _pairs(text: str, question: str) -> list[tuple[str, tuple[str, ...]]]:
    pairs = [each.partition(" ") for each in text.split("|")]
    return [(question.format(name), (value,)) for name, _, value in pairs]
