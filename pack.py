"""Packs an image folder into one file a split, which training maps: for data sets larger than memory.

    python pack.py data/imagenet --image-size 224                  once, on all cores, before a GPU is at hand
    python simclr.py --dataset data/imagenet --image-size 224      packs it too, if nobody has

<folder>/packed-<size>/train.npy and val.npy hold uint8 (N, 3, size, size): shorter side resized, antialiased,
centre-cropped. train.json and val.json say of which files. What is interrupted goes on where it was.
"""

import errno
import hashlib
import io
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import common
import numpy as np
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms.v2 import functional as vision
from tqdm import tqdm

HEADER = 128  # bytes of an .npy header for such arrays, whatever N is
OF_DISKS = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ESTALE)  # errors that say nothing of an image
BLOCK = 512  # images between two notes of how far it is
ANEW = "remove that folder to pack it anew"

warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # a map's, nor written


def pack(path, size, skip_broken=False):
    """Writes what is missing of <path>/packed-<size>. UserError for a folder that can't be used or has
    changed, and for unreadable images unless skip_broken, which leaves them out."""
    folder = path / f"packed-{size}"
    for split, images in splits(path).items():
        listing = digest(images)
        if not (folder / f"{split}.npy").exists():
            advice = "a folder of your own with links to its train and val will do"
            with common.refusing(f"{folder} can't be made: {advice}"):
                folder.mkdir(exist_ok=True)
            common.lock(folder, wait=True)  # before it is read what there is: another may just have ended
        note_file = folder / f"{split}.json"
        note = common.read_json(note_file) if note_file.exists() else {}
        note = note if _is_note(note) else {}
        whole = (folder / f"{split}.npy").exists()
        if whole and not note:
            raise common.UserError(f"{note_file} is absent or damaged: {ANEW}")
        if whole and note["listing"] != listing:
            raise common.UserError(f"{path / split} has changed since it was packed into {folder}: {ANEW}")
        if whole and note["skipped"] and not skip_broken:
            common.note(f"{folder} was packed without {len(note['skipped'])} unreadable images of {split}")
        if not whole:
            started = note.get("listing") == listing
            if started and note["skipped"] and not skip_broken:
                what = f"{folder} was begun without {note['skipped'][0]}, which is not readable"
                raise common.UserError(f"{what}: pack.py --skip-broken goes on, or {ANEW}")
            note = note if started else {"listing": listing, "done": 0, "skipped": []}
            _write(images, size, folder / f"{split}.part", note_file, note, skip_broken)
            os.replace(folder / f"{split}.part", folder / f"{split}.npy")


def _is_note(note):
    """Whether a JSON file's content is what `_write` writes."""
    names = note.get("skipped") if isinstance(note, dict) else None
    whole = isinstance(names, list) and all(isinstance(name, str) for name in names)
    return whole and isinstance(note.get("done"), int) and "listing" in note


def dataset(path, size, skip_broken=False):
    """The `common.Dataset` of an image folder: packed if it is not yet, mapped from packed-<size>."""
    folder = path / f"packed-{size}"
    try:
        pack(path, size, skip_broken)
    finally:  # processes of another node may pack on a disk of their own
        common.unlock(folder)
    found = []
    parts = splits(path)
    for split, images in parts.items():
        skipped = set(common.read_json(folder / f"{split}.json")["skipped"])
        kept = images.samples
        if skipped:
            kept = [sample for sample in kept if os.path.relpath(sample[0], path) not in skipped]
        labels = [parts["train"].class_to_idx[images.classes[label]] for _, label in kept]
        with common.refusing(f"{folder / split}.npy can't be mapped; if it is damaged, {ANEW}"):
            # only to be read: a mapping that may be written counts as memory, and there may be less
            x = np.lib.format.open_memmap(folder / f"{split}.npy", mode="r")
        if x.dtype != np.uint8 or x.shape != (len(kept), 3, size, size):
            raise common.UserError(f"{folder / split}.npy holds {x.dtype} {x.shape}, not its images: {ANEW}")
        found += [torch.from_numpy(x), torch.tensor(labels)]
    common.require_two(path, *found[::2])
    return common.Dataset(path.stem, *found, tuple(parts["train"].classes), mapped=True)


def splits(path):
    """{"train": ImageFolder, "val": ImageFolder}; UserError unless every class of val is one of train."""
    with common.refusing(f"{path} must hold train/<class>/* and val/<class>/*"):
        found = {split: ImageFolder(str(path / split)) for split in ("train", "val")}
    if unknown := set(found["val"].classes) - set(found["train"].classes):
        raise common.UserError(f"{path}/val has the class {min(unknown)!r}, which {path}/train does not have")
    common.require_two(path, *found.values())
    return found


def digest(images):
    """What changes when a file of an ImageFolder comes, goes, or gets another size."""
    lines = []
    for file, _ in images.samples:
        size = os.path.getsize(file) if os.path.exists(file) else None  # a link to nowhere
        lines.append(f"{os.path.relpath(file, images.root)} {size}\n")
    return hashlib.sha256("".join(lines).encode(errors="surrogateescape")).hexdigest()


def read_rgb(file):
    """A file's image in RGB. Of 16 bits of grey the upper 8: PIL would make white of all but the darkest."""
    with Image.open(file) as image:
        if max(image.size) > 1000 * min(image.size):  # its shorter side resized, it might not fit into memory
            raise ValueError(f"a strip of {image.width} x {image.height} pixels")
        if image.mode.startswith("I;16"):
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        if image.mode in ("I", "F"):
            raise ValueError(f"pixels of mode {image.mode} have no known range")
        return image.convert("RGB")


def _write(images, size, part, note_file, note, skip_broken):
    """Appends the images that are not `done` to the file, and the header when all are."""
    place = Path(images.root).parent
    bytes_each = 3 * size * size

    def read(sample):
        try:
            image = vision.center_crop(vision.resize(read_rgb(sample[0]), size), size)
            return np.asarray(image).transpose(2, 0, 1).tobytes()
        except Exception as error:  # Pillow's are many
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in OF_DISKS:
                raise
            return error

    part.touch()
    if part.stat().st_size < HEADER + bytes_each * (note["done"] - len(note["skipped"])):
        note |= {"done": 0, "skipped": []}  # a new file, or the disk lost some of it
    bar = tqdm(total=len(images), initial=note["done"], desc=images.root, disable=None, leave=False)
    with open(part, "r+b") as out, ThreadPoolExecutor(os.cpu_count()) as pool, bar:
        out.truncate(HEADER + bytes_each * (note["done"] - len(note["skipped"])))
        out.seek(0, os.SEEK_END)
        while note["done"] < len(images):
            few = max(1, min(BLOCK, 2**30 // bytes_each))  # a gigabyte at once
            block = images.samples[note["done"] : note["done"] + few]
            for (file, _), image in zip(block, pool.map(read, block)):
                if isinstance(image, bytes):
                    out.write(image)
                    continue
                what = f"{file} is not a readable image ({common.brief(image)})"
                if not skip_broken:
                    if not note["done"]:  # nothing to go on from
                        part.unlink()
                    raise common.UserError(f"{what}: pack.py --skip-broken leaves such images out")
                common.complain(f"left out: {what}")
                note["skipped"].append(os.path.relpath(file, place))
            out.flush()
            os.fsync(out.fileno())
            note["done"] += len(block)
            common.write_json(note_file, note)
            bar.update(len(block))
        shape = (len(images) - len(note["skipped"]), 3, size, size)
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": shape})
        assert len(header.getvalue()) == HEADER
        out.seek(0)
        out.write(header.getvalue())
        os.fsync(out.fileno())


def main():
    parser = common.Parser(__doc__)
    parser.add_argument("folder", type=Path, help="train/<class>/* and val/<class>/*")
    parser.add_argument("--image-size", type=common.number(int, 8, 4096), required=True, help="pixels")
    parser.add_argument("--skip-broken", action="store_true", help="leave unreadable images out")
    args = parser.parse_args()
    data = dataset(args.folder, args.image_size, args.skip_broken)
    print(f"{len(data.x_train)} images to train, {len(data.x_test)} to test, {len(data.classes)} classes")


if __name__ == "__main__":
    common.run(main)
