"""Makes the goldens of `pixels`: inputs and outputs of independent implementations, as safetensors.

    python make_golden.py <folder of the unpacked basicsr 1.4.2 sdist>

torch: interpolate, the wavelet colour fix (by the definition in facts/diffusion.md J), AdaIN.
basicsr 1.4.2 (sdist, Apache-2.0): blur kernels, filter2D, USMSharp, and the NIQE parameters.
pyiqa: PSNR, SSIM, NIQE.  Pillow (libjpeg-turbo): JPEG 4:2:0.
Seed: numpy default_rng(20261124). Versions are in each file's metadata.
"""

import io, json, os, sys, tempfile, types

import numpy as np
import PIL, PIL.Image
import scipy, scipy.io
import torch
import torch.nn.functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "../../../priors/tests/golden"))

from golden import script, write

SDIST = sys.argv[1]
RNG = np.random.default_rng(20261124)
VERSIONS = {"torch": torch.__version__, "numpy": np.__version__, "scipy": scipy.__version__, "pillow": PIL.__version__, "basicsr": "1.4.2"}


def save(name, tensors, **more):
    path = os.path.join(HERE, name + ".safetensors")
    tensors = {k: torch.from_numpy(np.array(v, order="C")) for k, v in tensors.items()}
    write(path, tensors, {"script": script(), "versions": json.dumps(VERSIONS | more), "seed": "20261124"})
    print(name, os.path.getsize(path))


def texture(h, w, exponent=1.2):
    """A picture with a falling spectrum, as photographs have, uint8 [h, w, 3]."""
    fy, fx = np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)[None]
    falling = 1 / np.maximum(np.hypot(fy, fx), 1 / max(h, w)) ** exponent
    planes = [np.fft.ifft2(np.fft.fft2(RNG.standard_normal((h, w))) * falling).real for _ in range(4)]
    rgb = np.stack([planes[3] + 0.4 * p for p in planes[:3]], -1)
    rgb = (rgb - rgb.mean()) / rgb.std()
    return np.clip(np.round(128 + 50 * rgb), 0, 255).astype(np.uint8)


def chw(u8):
    return (u8.astype(np.float32) / 255).transpose(2, 0, 1)


def interpolate():
    x = chw(texture(17, 23))
    out = {"input": x}
    for mode in ["area", "bilinear", "bicubic"]:
        kw = {} if mode == "area" else {"align_corners": False}
        for factor in [0.15, 0.37, 0.5, 1.0, 1.01, 1.31, 2.0]:
            y = F.interpolate(torch.from_numpy(x)[None], scale_factor=factor, mode=mode, **kw)[0]
            out[f"{mode}.factor.{factor}"] = y.numpy()
        for w, h in [(40, 9), (23, 17), (23, 34), (7, 17), (1, 1)]:
            y = F.interpolate(torch.from_numpy(x)[None], size=(h, w), mode=mode, **kw)[0]
            out[f"{mode}.size.{w}x{h}"] = y.numpy()
    save("interpolate", out)


def wavelet_parts(x):
    kernel = torch.tensor([[1., 2, 1], [2, 4, 2], [1, 2, 1]])[None, None].repeat(3, 1, 1, 1) / 16
    high = torch.zeros_like(x)
    for level in range(5):
        r = 2 ** level
        low = F.conv2d(F.pad(x, (r, r, r, r), mode="replicate"), kernel, dilation=r, groups=3)
        high, x = high + (x - low), low
    return high, x


def colour():
    # Well inside [0, 1], so that the clamp of ours, which the originals leave to the caller, does not act.
    x, ref = (torch.from_numpy(chw(texture(40, 48)))[None] * 0.3 + shift for shift in (0.3, 0.4))
    wavelet = wavelet_parts(x)[0] + wavelet_parts(ref)[1]
    def moments(t):
        v = t.reshape(1, 3, -1)
        return v.mean(2)[..., None, None], (v.var(2) + 1e-5).sqrt()[..., None, None]
    (mx, sx), (mr, sr) = moments(x), moments(ref)
    adain = (x - mx) / sx * sr + mr
    assert all(t.min() > 0 and t.max() < 1 for t in (wavelet, adain))
    save("colour", {"image": x[0].numpy(), "reference": ref[0].numpy(), "wavelet": wavelet[0].numpy(), "adain": adain[0].numpy()})


def basicsr(path):
    source = open(os.path.join(SDIST, "basicsr", path)).read()
    source = source.replace("from torchvision.transforms.functional_tensor import rgb_to_grayscale", "")
    module = types.ModuleType(path)
    exec(compile(source, path, "exec"), module.__dict__)
    return module


def degrade():
    import cv2
    d, p = basicsr("data/degradations.py"), basicsr("utils/img_process_util.py")
    k = {
        "gaussian.21.2.2.0": d.bivariate_Gaussian(21, 2.0, 2.0, 0, isotropic=True),
        "gaussian.15.2.5.0.7.0.6": d.bivariate_Gaussian(15, 2.5, 0.7, 0.6, isotropic=False),
        "generalized.13.1.5.0.7": d.bivariate_generalized_Gaussian(13, 1.5, 1.5, 0, 0.7, isotropic=True),
        "generalized.aniso": d.bivariate_generalized_Gaussian(11, 2.2, 0.9, -2.1, 3.1, isotropic=False),
        "plateau.iso": d.bivariate_plateau(9, 1.1, 1.1, 0, 1.7, isotropic=True),
        "plateau.aniso": d.bivariate_plateau(19, 2.9, 0.4, 1.2, 1.3, isotropic=False),
        "sinc.7": d.circular_lowpass_kernel(np.pi / 3, 7),
        "sinc.21": d.circular_lowpass_kernel(2.4, 21),
    }
    out = {"kernel." + name: v.astype(np.float32) for name, v in k.items()}
    blur = torch.FloatTensor(cv2.getGaussianKernel(51, 0) @ cv2.getGaussianKernel(51, 0).T)[None]
    while True:  # a picture without a residual so near the threshold that rounding decides its mask
        x = chw(texture(56, 64))
        t = torch.from_numpy(x)[None]
        if (((t - p.filter2D(t, blur)).abs() * 255 - 10).abs() > 1e-3).all():
            break
    out["input"] = x
    out["filtered.sinc.21"] = p.filter2D(t, torch.from_numpy(out["kernel.sinc.21"])[None])[0].numpy()
    out["sharpened"] = p.USMSharp()(t)[0].numpy()
    save("degrade", out, opencv=cv2.__version__)


def jpeg():
    x = texture(48, 64)
    out = {"input": x}
    for quality in (30, 50, 90):
        data = io.BytesIO()
        PIL.Image.fromarray(x).save(data, "JPEG", quality=quality, subsampling="4:2:0")
        out[f"quality.{quality}"] = np.asarray(PIL.Image.open(data).convert("RGB"))
    save("jpeg", out)


def score():
    import pyiqa
    npz = np.load(os.path.join(SDIST, "basicsr/metrics/niqe_pris_params.npz"))
    mat = os.path.join(tempfile.mkdtemp(), "niqe_modelparameters.mat")
    scipy.io.savemat(mat, {"mu_prisparam": npz["mu_pris_param"], "cov_prisparam": npz["cov_pris_param"]})
    niqe = {luma: pyiqa.create_metric("niqe", device="cpu", pretrained_model_path=mat, color_space=luma) for luma in ("yiq", "ycbcr")}
    t = lambda u8: torch.from_numpy(chw(u8))[None]

    ref = texture(90, 122)
    blurred = np.asarray(PIL.Image.fromarray(ref).resize((61, 45)).resize((122, 90), PIL.Image.BICUBIC))
    dist = np.clip(blurred + np.round(RNG.standard_normal(ref.shape) * 6), 0, 255).astype(np.uint8)
    out = {"reference": ref, "distorted": dist}
    for name in ("psnr", "psnry", "ssim", "ssimc"):
        lumas = ("yiq", "ycbcr") if name in ("psnry", "ssim") else ("rgb",)
        for luma in lumas:
            kw = {} if luma == "rgb" else {"color_space": luma}
            v = pyiqa.create_metric(name, device="cpu", **kw)(t(dist), t(ref)).double().item()
            out[f"{name[:4]}.{luma}"] = np.array([v])
    save("score", out, pyiqa=pyiqa.__version__)

    picture = texture(200, 300)
    out = {"picture": picture}
    for luma in niqe:
        out[f"niqe.{luma}"] = np.array([niqe[luma](t(picture)).double().item()])
        out[f"niqe.{luma}.one_block"] = np.array([niqe[luma](t(picture[:120, :150])).double().item()])
        out[f"niqe.{luma}.two_blocks"] = np.array([niqe[luma](t(picture[:120, :])).double().item()])
    save("niqe", out, pyiqa=pyiqa.__version__)
    print({k: v for k, v in out.items() if k != "picture"})


interpolate(), colour(), degrade(), jpeg(), score()
