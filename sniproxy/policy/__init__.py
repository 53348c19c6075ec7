"""Who may reach which name: rules, and the engine that decides by them. Pure: no socket, clock or log."""
