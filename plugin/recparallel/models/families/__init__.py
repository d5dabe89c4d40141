"""Families that do not say where their parts are (no ``base_model_pp_plan``): one file each."""
