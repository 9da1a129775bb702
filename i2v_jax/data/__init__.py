"""Clips for training: videos with captions, decoded to uint8 frames and batched, the same for a seed on any machine."""
