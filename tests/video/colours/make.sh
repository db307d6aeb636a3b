#!/usr/bin/env bash
# Makes the files of this folder and ffmpeg's own pictures of them, one below the other: needs ffmpeg (made with 5.1).
set -euo pipefail
cd "$(dirname "$0")"
make() { # name, filters and encoder's arguments
  ffmpeg -v error -y -f lavfi -i "testsrc2=size=50x40:rate=10:duration=0.2,format=rgb24" -vf "$2" "${@:3}" -bitexact "$1"
  ffmpeg -v error -y -i "$1" -pix_fmt rgb24 -f rawvideo - | ffmpeg -v error -y -f rawvideo -pix_fmt rgb24 -s 50x80 -i - "$1.png"
}
h264=(-c:v libx264 -preset veryfast -crf 30)
make bt709.mp4 scale=out_color_matrix=bt709 "${h264[@]}" -pix_fmt yuv420p -colorspace bt709
make full.mp4 scale=out_color_matrix=bt709:out_range=pc "${h264[@]}" -pix_fmt yuvj420p -colorspace bt709 -color_range pc
make ten_bit.mp4 scale=out_color_matrix=bt709 "${h264[@]}" -pix_fmt yuv420p10le -colorspace bt709
make fields.mp4 setfield=tff "${h264[@]}" -pix_fmt yuv420p -flags +ilme+ildct -x264opts tff=1
make mpeg2_422.mkv scale=out_color_matrix=smpte240m -c:v mpeg2video -q:v 12 -pix_fmt yuv422p -colorspace smpte240m
