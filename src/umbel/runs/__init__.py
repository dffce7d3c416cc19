"""How a run goes: its conductor and coordinator, its journal and its events."""
