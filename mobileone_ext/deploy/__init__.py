"""From a trained network to a device: fusing, the proof, costs, exported files, int8."""
