"""From a video file to preprocessed pixels: sampling, decoding, resizing.

Floor 1.
"""
