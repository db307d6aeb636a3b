"""Videos from strangers: nothing but the file itself is read, whatever it says; what is no regular file, or too
large, is refused before it is read."""

import http.server
import os
import struct
import threading
import time
import zipfile
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from clips import numbers, write_clip
from hookedvid.errors import DataError, VideoError
from hookedvid.video import archive, decode
from hookedvid.video.frames import read_clip
from hookedvid.video.source import content_hash, video_hash


@pytest.fixture(scope="module")
def server():
    """The address of a server on this machine, and what was asked of it."""
    seen: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_error(404)

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{listening.server_port}", seen
        listening.shutdown()


@pytest.fixture(scope="module")
def secret(tmp_path_factory):
    """A file of this machine's that no stranger's file may show."""
    return write_clip(tmp_path_factory.mktemp("secret") / "secret.ts", n=30)


def playlists(url):
    """Texts that make FFmpeg open what they name, by kind."""
    name = "AdaptationSet mimeType='video/mp4'><Representation id='0' bandwidth='1'><BaseURL"
    return {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{url}\n#EXT-X-ENDLIST\n",
        "key": f'#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-KEY:METHOD=AES-128,URI="{url}"\n#EXTINF:1,\nx.ts\n'
        "#EXT-X-ENDLIST\n",
        "ffconcat": f"ffconcat version 1.0\nfile '{url}'\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
        "a=rtpmap:96 H264/90000\n",
        "dash": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static' "
        "mediaPresentationDuration='PT1S' profiles='urn:mpeg:dash:profile:isoff-on-demand:2011'><Period>"
        f"<{name}>{url}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    }


@pytest.mark.parametrize("suffix", ["m3u8", "mp4", "ts", "ffconcat", "sdp", "mpd", "txt"])
@pytest.mark.parametrize("kind", playlists(""))
def test_a_playlist_fetches_nothing_under_any_name(tmp_path, server, secret, kind, suffix):
    address, seen = server
    for url in (f"{address}/x.ts", str(secret), f"file:{secret}", os.path.relpath(secret, tmp_path)):
        path = tmp_path / f"a.{suffix}"
        path.write_text(playlists(url)[kind])
        with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
            file.write(path, "v/a.mp4")
        for source in (path, f"{tmp_path / 'a.zip'}::v/a.mp4"):
            with pytest.raises(VideoError, match=r"cannot sample frames of .*: it (is|cannot|has)"):
                read_clip(source, 2)
    assert seen == []


def test_the_error_says_what_was_found_and_what_is_accepted(tmp_path, secret):
    path = tmp_path / "a.mp4"
    path.write_text(playlists(str(secret))["hls"])
    accepted = "give one file of mp4, mov, mkv, webm, avi, …, no playlist and no text"
    with pytest.raises(VideoError, match=rf"bytes that begin with b'#EXTM3U\\n#EXT-X-T'; .*{accepted}"):
        read_clip(path, 2)


@pytest.mark.parametrize("kind", ["hls", "ffconcat"])
def test_a_reader_of_playlists_that_got_in_could_still_open_nothing(tmp_path, server, secret, monkeypatch, kind):
    address, seen = server
    monkeypatch.setitem(decode.ALONE, "format_whitelist", "hls,concat")
    for url in (f"{address}/x.ts", str(secret), f"file:{secret}"):
        path = tmp_path / "a.mp4"
        path.write_text(playlists(url)[kind])
        with pytest.raises((VideoError, AssertionError)):
            read_clip(path, 2)
    assert seen == []


def referring(path, source, name):
    """A copy of an MP4 whose index stands last, with blank frames, that says they are in the file `name` beside it."""
    data = bytearray(source.read_bytes())
    start, n = data.index(b"mdat"), data.index(b"moov") - 8
    data[start + 4 : n] = bytes(n - start - 4)
    alias = struct.pack(">II", 0, 1)[4:] + bytes(10) + bytes(28) + bytes(12) + bytes(64) + bytes(16)
    target = b"/" + name.encode() + bytes(len(name) % 2 == 0)
    alias += (
        struct.pack(">hh", 1, 1) + bytes(16) + struct.pack(">hH", 2, len(target)) + target + struct.pack(">hH", -1, 0)
    )
    old = data.index(b"dref") + 12  # of the box's fields, its one entry
    size = struct.unpack_from(">I", data, old)[0]
    alias = bytes(4) + alias[4:]  # no flag that the data are in here
    entry = struct.pack(">I4s", len(alias) + 8, b"alis") + alias
    data[old : old + size] = entry
    for box in (b"dref", b"dinf", b"minf", b"mdia", b"trak", b"moov"):
        at = data.index(box) - 4
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + len(entry) - size)
    path.write_bytes(data)
    return path


def test_an_mp4_shows_no_other_files_frames(tmp_path):
    other = write_clip(tmp_path / "other.mp4", n=12)
    path = referring(tmp_path / "referring.mp4", other, "other.mp4")
    with av.open(str(path), options={"enable_drefs": "1"}) as container:  # what it is made for
        assert numbers(f.to_ndarray(format="rgb24") for f in container.decode(video=0)) == list(range(12))
    with pytest.raises(VideoError, match="cannot sample frames of"):
        read_clip(path, 2)


def test_images_are_what_their_names_say(tmp_path):
    """Pillow would run Ghostscript on an EPS file, and read some forty formats more."""
    image = Image.fromarray(np.zeros((8, 8, 3), np.uint8))
    for name, kind in (("0.png", "EPS"), ("1.png", "TIFF"), ("2.jpg", "PPM")):
        folder = tmp_path / kind
        folder.mkdir()
        image.save(folder / name, kind)
        with pytest.raises(VideoError, match="the image cannot be read"):
            read_clip(folder, 1)


@pytest.mark.parametrize("make", [os.mkfifo, lambda p: os.symlink("/dev/zero", p), os.mkdir])
@pytest.mark.parametrize("name", ["a.mp4", "a.srt", "frames/0.png", "a.zip"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, make, name):
    if make is os.mkdir and name == "frames/0.png":
        pytest.skip("an entry that is no image")
    (tmp_path / "frames").mkdir()
    make(tmp_path / name)
    source = {"frames/0.png": tmp_path / "frames", "a.zip": f"{tmp_path / 'a.zip'}::x.mp4"}.get(name, tmp_path / name)
    start = time.monotonic()
    with pytest.raises(VideoError, match=r"no regular file|holds no images|cannot be read"):
        read_clip(source, 1)
    assert name == "frames/0.png" or video_hash(source) == "" or make is os.mkdir
    assert time.monotonic() - start < 5


def sparse(path, size, end=b""):
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size - len(end))
        file.write(end)
    return path


def test_a_file_too_large_to_be_a_video_is_not_read(tmp_path):
    path = sparse(tmp_path / "a.mp4", 2**42)
    start = time.monotonic()
    with pytest.raises(
        VideoError, match=r"it has 4,398,046,511,104 bytes, and more than 34,359,738,368 are not read; cut"
    ):
        read_clip(path, 2)
    with pytest.raises(VideoError, match="are not read"):
        content_hash(path)
    assert time.monotonic() - start < 5


def test_a_list_of_members_without_end_is_not_read(tmp_path):
    """The end of an archive says how long its list is; a sparse file of 40 GB says 22 GB, and takes no room."""
    n, size = 22 * 10**9, 40 * 10**9
    far = struct.pack("<4sQHHIIQQQQ", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**8, 10**8, n, size - 98 - n)
    locator = struct.pack("<4sIQI", b"PK\x06\x07", 0, size - 98, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path = sparse(tmp_path / "a.zip", size, far + locator + end)
    with pytest.raises(
        VideoError, match=r"its list of members has 22,000,000,000 bytes, and more than 67,108,864 are not"
    ):
        archive.index(path)
    with pytest.raises(VideoError, match="its list of members"):
        read_clip(f"{path}::x.mp4", 2)


def test_a_stored_member_too_large_to_be_a_video_is_not_read(tmp_path, monkeypatch, secret):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.write(secret, "x.ts")
    monkeypatch.setattr(archive, "LARGEST", 1000)
    archive._index.cache_clear()
    with pytest.raises(VideoError, match=r"x.ts: it has [\d,]+ bytes, and more than 1,000 are not read"):
        read_clip(f"{tmp_path / 'a.zip'}::x.ts", 2)


def test_annotations_and_study_files_are_regular_files_of_a_size(tmp_path, monkeypatch):
    from hookedvid.data import annotations, item
    from hookedvid.errors import ConfigError
    from hookedvid.study.definition import Study

    big = sparse(tmp_path / "big", 2**42)
    os.mkfifo(tmp_path / "pipe")
    for read, error in (
        (item.read_items, DataError),
        (annotations.read_json, DataError),
        (lambda path: list(annotations.read_table(path, {}, annotations.Problems())), DataError),
        (Study.from_toml, ConfigError),
    ):
        for path in (big, tmp_path / "pipe", Path("/dev/zero"), tmp_path):
            with pytest.raises(error, match=r"no regular file|more than the|no Parquet file"):
                read(path)


def test_a_table_of_equal_rows_without_end_is_not_built(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hookedvid.data import annotations

    pq.write_table(pa.table({"a": pa.repeat("x", 100_000)}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 2000
    monkeypatch.setattr(annotations, "MOST_ROWS", 1000)
    with pytest.raises(DataError, match="would be 100,000 rows"):
        list(annotations.read_table(tmp_path / "a.parquet", {"a": "text"}, annotations.Problems()))
