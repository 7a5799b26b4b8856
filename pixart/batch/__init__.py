"""Pictures for a whole list of prompts: on one device, several, or a Ray cluster; each drawn once, whatever happens."""
