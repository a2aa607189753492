"""Stages: artefacts and a section of the settings in, one artefact out."""
