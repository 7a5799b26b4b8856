"""Images for a list of prompts on one device, several, or a Ray cluster; resumable, each image made once."""
