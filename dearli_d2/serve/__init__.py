"""A page of this machine that shows what a model sees in a picture: `dearli serve`."""
