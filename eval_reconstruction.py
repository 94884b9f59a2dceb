"""Evaluate a folder of reconstructions: python3 eval_reconstruction.py --sample_path=DIR

Prints running and final MSE, SSIM, SSIM_official and LPIPS over all images and writes them to DIR/metrics.json.
"""

import torch

from dbae.progress import progress_bar
from dbae.runtime import setup
from eval import samples
from eval.reconstruction import METRICS, ReconstructionMetrics, describe
from scripts.cli import Parser, run


def main(args: list[str] | None = None) -> None:
    """Read the pairs of real and reconstructed images, update the metrics, write the report."""
    parser = Parser(__doc__)
    parser.add_argument("--sample_path", required=True, metavar="DIR", help="folder that recon_dbae.sh wrote")
    parser.add_argument(
        "--metrics", default=",".join(METRICS), metavar="A,B,...", help=f"any of {', '.join(METRICS)} (default: all)"
    )
    parser.add_argument(
        "--lpips_backbone", metavar="PATH", default=None, help="AlexNet's features, torchvision's names"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    options = parser.parse_args(args)

    pairs = samples.pairs(options.sample_path)
    samples.check_complete(options.sample_path)
    metrics = ReconstructionMetrics(options.metrics.split(","), setup(options.device), options.lpips_backbone)
    with progress_bar(len(pairs), "batch", "evaluate") as bar:
        for paths in pairs:
            metrics.update(*(torch.from_numpy(samples.read_part(path)) for path in paths))
            bar.set_postfix_str(f"{metrics.images} images  {describe(metrics.means())}", refresh=False)
            bar.update()
    samples.check_complete(options.sample_path, metrics.images)
    samples.add_metrics(
        options.sample_path, metrics.images, metrics=metrics.means(), standard_errors=metrics.standard_errors()
    )
    print(f"{describe(metrics.means())}  ({metrics.images} images)")


if __name__ == "__main__":
    run(main)
