//! Pictures: files, resizing, colour, degradation, scores; knows no tensor.
