"""A Hugging Face causal LM and a recommendation head as a list of pipeline layers, and the losses over them.

``trunk.py`` takes the LM apart, ``layers.py`` holds the layers, ``recommender.py`` puts them together, ``losses/``
scores them.
"""
