"""The Mask2Former core: decoders, matching, losses and read-out."""
