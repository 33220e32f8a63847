"""What a visitor of the page may ask for."""

from dataclasses import dataclass

from PIL import Image

_AROUND = 1_000_000  # bytes of an upload that stand around its files


@dataclass(frozen=True)
class Limits:
    """What one visitor may ask for.

    Args:
        max_upload_mb: size of a file, in units of 2^20 bytes.
        max_pixels: width times height of a picture, before anything of it is decoded.
        max_pictures: on a page.
        max_words: that are typed; the model's own come besides.
        max_word_length: in characters.
        max_files: sent at once; those of a folder that are no pictures count too.

    Raises:
        ValueError: if one is not above zero, or there are more pixels than Pillow reads.

    Example:
        >>> Limits(max_upload_mb=2).max_request_bytes
        105857600
    """

    max_upload_mb: float = 20
    max_pixels: int = 50_000_000
    max_pictures: int = 50
    max_words: int = 300
    max_word_length: int = 100
    max_files: int = 1000

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}; nothing could be scored")
        known = Image.MAX_IMAGE_PIXELS
        if known is not None and self.max_pixels > 2 * known:  # Pillow itself refuses what is larger
            raise ValueError(
                f"max_pixels must be at most {2 * known:,}, beyond which Pillow reads no picture, got "
                f"{self.max_pixels:,}; make larger pictures smaller first"
            )

    @property
    def max_upload_bytes(self) -> int:
        """Of a file."""
        return int(self.max_upload_mb * 2**20)

    @property
    def max_files_bytes(self) -> int:
        """Of all files that are sent at once."""
        return self.max_upload_bytes * self.max_pictures

    @property
    def max_request_bytes(self) -> int:
        """Of all files that are sent at once, and what stands around them."""
        return self.max_files_bytes + _AROUND

    @property
    def max_total_bytes(self) -> int:
        """Of the uploads of all visitors that were not read yet."""
        return 2 * self.max_request_bytes
