"""What a representation is worth; receives arrays or an embed function."""
