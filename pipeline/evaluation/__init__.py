"""How good predictions are: metrics, intervals and calibration."""
