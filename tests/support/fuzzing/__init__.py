"""Parts that fuzz tests share: the cases and their number, attempts and their figures, changes of files, and the corpus."""
