"""`dearli suggest`: which images to label next, and which labels to look at again."""
