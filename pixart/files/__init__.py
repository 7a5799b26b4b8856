"""Files that are not weights: written whole or not at all, images, lists of prompts, tables."""
