"""A Hugging Face causal LM and a recommendation head as a list of pipeline layers, and the losses over them.

``trunk.py`` takes the LM apart, ``layer.py`` describes a layer, ``layers.py`` holds them, ``recommender.py`` puts
them together, ``losses/`` scores them, ``zoo.py`` reads model cards.
"""
