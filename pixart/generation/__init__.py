"""From prompts to images: a request, checked, and the parts of the library wired together to answer it."""
