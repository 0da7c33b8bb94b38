"""One int8 network in every format that has it: ``python -m research.int8.formats CONFIG WEIGHTS PHOTOS OUT``.

The files are those of ``tools/quantize.py``; measured on the config's test set. OUT gets the files, which are made
anew, and formats.md.
"""

from pathlib import Path

from mobileone_ext import cli


def parse_args():
    parser = cli.Parser(description=__doc__)
    cli.add_config_arguments(parser)
    parser.add_argument('weights')
    parser.add_argument('photos', help='folder of calibration photos')
    parser.add_argument('out', type=Path)
    parser.add_argument('--num-images', '--num-calib', dest='num_images', type=int, default=100)
    return parser.parse_args()


def main():
    args = parse_args()
    config = cli.load_config(args.config, args.cfg_options)
    from mobileone_ext.deploy import export
    from mobileone_ext.deploy.formats import FORMAT_OF_SUFFIX
    from mobileone_ext.deploy.quantization import Options, photos
    from mobileone_ext.deploy.quantization import quantize as pipeline
    from mobileone_ext.deploy.quantization.calibrate import quantize
    from mobileone_ext.deploy.runtime import open_network
    from mobileone_ext.files import write_text
    from mobileone_ext.text import markdown_table

    args.out.mkdir(parents=True, exist_ok=True)
    job = pipeline.Job(config, args.weights, images=args.photos, num_images=args.num_images)
    images = job.preprocessing.normalize(photos.read(*job.photos, job.preprocessing, job.num_images))
    int8 = quantize(job.model, images, Options())
    networks, sizes = {'simulation': lambda x: int8(pipeline.torch.from_numpy(x)).numpy()}, {}
    for suffix in pipeline.INT8_SUFFIXES:
        path = args.out / f'int8{suffix}'
        request = export.Request(FORMAT_OF_SUFFIX[suffix])
        pipeline.write(pipeline.Job(config, args.weights, request=request), int8, path)
        networks[suffix] = open_network(path, threads=1)
        sizes[suffix] = sum(name.stat().st_size for name in (path, *export.companions(path))) / 1e6
        print(path, 'written', flush=True)
    rows = pipeline.measure_accuracy(job, job.test_images, networks)
    lines = []
    for row in rows:
        size = f'{sizes[row["name"]]:.1f}' if row['name'] in sizes else ''
        lines.append((row['name'], f'{row["top1"]:.2f}', f'{row["top5"]:.2f}', row['flips'], size))
    table = markdown_table(('', 'top-1', 'top-5', 'flips', 'MB'), lines)
    write_text(f'{table}\n', args.out / 'formats.md')
    print(table)


if __name__ == '__main__':
    cli.run(main)
