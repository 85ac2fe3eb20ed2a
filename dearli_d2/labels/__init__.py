"""Labels in the formats of labelling tools: reading them as training data, and writing predictions in them.

A format is a module in `formats/`. `structures` has what all formats share, `geometry` masks and polygons, `recognition` finds the
format of a file or folder, `panoptic` makes the COCO-panoptic files of which training reads.
"""
