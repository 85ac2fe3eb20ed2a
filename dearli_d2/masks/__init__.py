"""Class-agnostic masks for the decoder warm-up (DEARLi, Sec. 3.3): generators, their storage, a resumable run."""
