"""What the factory works on: an object store of immutable folders, and the models pulled into it.

`objects` keeps any folder (a model, a data set, an adapter) under its content hash;
`pull` brings a model's weights there from a package, the Hugging Face hub or a folder.
"""
