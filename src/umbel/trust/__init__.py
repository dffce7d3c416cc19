"""Who may do what: keys, tokens, certificates, archives of code, and what the owner of a node allows."""
