"""From a video to one that can be posted: aspect, text, a logo, music, and the format that a place wants."""
