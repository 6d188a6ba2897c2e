"""One quantised base model, and the roles that live on it as adapters."""
