"""Networks: the CAM classifier and the segmenter, built in one place."""
