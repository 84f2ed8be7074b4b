"""The small room every other room imports: triplet maths, pixels, bundle format.

Needs numpy, Pillow and the standard library only, and imports none of the other rooms.
"""
