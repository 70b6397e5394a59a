"""Makes the small files of `bad/` (hostile) and `kinds/` (every layout that must be read). Pillow 13, OpenCV 5."""

import os, struct, zlib

import cv2
import numpy as np
from PIL import Image

HERE = os.path.dirname(os.path.abspath(__file__))


def put(name, data):
    with open(os.path.join(HERE, name), "wb") as f:
        f.write(data)


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(w, h, depth=8, colour=2, idat=b""):
    head = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


# The picture of kinds/: 5 x 3, red 40 x, green 80 y, blue 200.
y, x = np.mgrid[0:3, 0:5]
rgb = np.stack([x * 40, y * 80, x * 0 + 200], -1).astype(np.uint8)
alpha = (x * 50 + y).astype(np.uint8)

put("bad/empty.png", b"")
put("bad/text.png", b"this is a shopping list, not a picture\n")
put("bad/huge.png", png(60000, 60000, idat=zlib.compress(b"\0" * 64)))
put("bad/wide.png", png(2_000_000_000, 1, idat=zlib.compress(b"\0" * 64)))
put("bad/no_pixels.png", png(0, 7, idat=zlib.compress(b"")))
put("bad/short_data.png", png(64, 64, idat=zlib.compress(b"\0" * 100)))
whole = png(64, 64, idat=zlib.compress(b"".join(b"\0" + bytes(range(192)) for _ in range(64))))
put("bad/truncated.png", whole[: len(whole) // 2])
broken = bytearray(whole); broken[60] ^= 0x55
put("bad/damaged.png", bytes(broken))
put("bad/signature_only.png", whole[:8])
noise = np.random.default_rng(1).integers(0, 255, (64, 64, 3), dtype=np.uint8)
Image.fromarray(noise).save(HERE + "/t.jpg", quality=60)
jpg = open(HERE + "/t.jpg", "rb").read()
os.remove(HERE + "/t.jpg")
put("bad/truncated.jpg", jpg[: len(jpg) * 2 // 3])
put("bad/header_only.jpg", jpg[:200])
put("bad/start_only.jpg", jpg[:3])
put("bad/huge.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0))
put("bad/truncated.bmp", b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60, 60, 1, 24, 0, 0, 0, 0, 0, 0) + b"abc")
put("bad/truncated.webp", b"RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0\x2f\x3f\xc0\x0f\0")
put("bad/loop.tiff", b"II*\0\x08\0\0\0" + b"\x01\0" + struct.pack("<HHII", 256, 4, 1, 10) + struct.pack("<I", 8))
put("bad/gif_named.png", b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;")
put("bad/phone.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 32)

frames = [Image.fromarray(rgb), Image.fromarray(255 - rgb)]
frames[0].save(HERE + "/bad/animated.webp", save_all=True, append_images=frames[1:], duration=100, lossless=True)

big = np.kron(rgb, np.ones((16, 16, 1), np.uint8))
Image.fromarray(big).save(HERE + "/kinds/rgb.jpg", quality=98, subsampling=0)
Image.fromarray(big).save(HERE + "/kinds/progressive.jpg", quality=98, subsampling=0, progressive=True)
Image.fromarray(big).convert("CMYK").save(HERE + "/kinds/cmyk.jpg", quality=98)
open(HERE + "/kinds/jpeg_named.png", "wb").write(open(HERE + "/kinds/rgb.jpg", "rb").read())
exif = Image.Exif(); exif[0x0112] = 6; exif[0x010F] = "reclair"
Image.fromarray(np.rot90(big)).save(HERE + "/kinds/rotated.jpg", quality=98, subsampling=0, exif=exif)
Image.fromarray(rgb).save(HERE + "/kinds/rgb.png")
Image.fromarray(np.dstack([rgb, alpha])).save(HERE + "/kinds/rgba.png")
Image.fromarray(rgb).quantize(15).save(HERE + "/kinds/palette.png")
p = Image.fromarray(rgb).quantize(15)
p.save(HERE + "/kinds/palette_alpha.png", transparency=bytes([128] * 15))
cv2.imwrite(HERE + "/kinds/rgb16.png", (rgb[..., ::-1].astype(np.uint16) * 257 + 1))
cv2.imwrite(HERE + "/kinds/grey16.png", (alpha.astype(np.uint16) * 257))
Image.fromarray(alpha).save(HERE + "/kinds/grey.png")
Image.fromarray(np.dstack([alpha, alpha]), "LA").save(HERE + "/kinds/grey_alpha.png")
Image.fromarray(alpha > 60).save(HERE + "/kinds/one_bit.png")
Image.fromarray(rgb).save(HERE + "/kinds/rgb.webp", lossless=True)
Image.fromarray(np.dstack([rgb, alpha])).save(HERE + "/kinds/rgba.webp", lossless=True, exact=True)
Image.fromarray(rgb).save(HERE + "/kinds/rgb.bmp")
Image.fromarray(rgb).save(HERE + "/kinds/lzw.tiff", compression="tiff_lzw")
cv2.imwrite(HERE + "/kinds/float.tiff", rgb.astype(np.float32))
Image.fromarray(rgb).save(HERE + "/kinds/icc.tiff", icc_profile=b"\0" * 16 + b"RGB " + b"\0" * 112)
