"""Names of the four actors: the one list that evaluation, chat and app share."""

BASE, INSTRUCT, COARSE, FINE = "base", "instruct", "coarse", "fine"
ACTORS = (BASE, INSTRUCT, COARSE, FINE)
