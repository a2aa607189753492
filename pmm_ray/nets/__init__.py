"""Networks: the CAM classifier, the segmenter and RRM's network of both, built in one place."""
