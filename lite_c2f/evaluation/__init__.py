"""How good the actors are."""
