"""The modules: attention, decoder, vision tower, projector. No file here knows a family's name.

Floor 1.
"""
