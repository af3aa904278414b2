"""What the preset `paper` alone needs: codebooks and the LSTM, as they were published."""
