//! Times of day that come back: quiet hours and recurring silences.
