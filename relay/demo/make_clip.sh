#!/bin/sh
# Makes demo.flv, the clip that the built-in cluster publishes in a loop as live/demo.
#
# A moving picture with a running clock, and a 440 Hz tone that beeps each second: H.264 (constrained
# baseline, no B frames, so nothing is reordered) and AAC-LC, a keyframe each second.
#
# The clip loops without a seam: a publisher adds 8000 ms to every timestamp at each turn.
# * 8 s are exactly 200 video frames of 40 ms and 375 AAC frames of 1024 samples at 48 kHz.
# * An AAC encoder begins with a priming frame.  So more sound than is needed is encoded and 375 frames are
#   copied from 8 s on; the tone repeats each second, so the last frame overlaps into the first.
# * no_sequence_end: an end-of-sequence tag in the middle of a live stream would be wrong.
# * no_duration_filesize: the metadata of a live stream has no duration.
#
# Needs ffmpeg (5.1 made the clip in the package); writes demo.flv beside this script.
set -eu
cd "$(dirname "$0")"
sound="$(mktemp --suffix=.m4a)"
trap 'rm -f "$sound"' EXIT
ffmpeg -hide_banner -loglevel warning -y \
    -f lavfi -i "sine=frequency=440:beep_factor=4:sample_rate=48000:duration=17" \
    -c:a aac -b:a 48k -ac 1 "$sound"
ffmpeg -hide_banner -loglevel warning -y \
    -f lavfi -i "testsrc2=size=640x360:rate=25:duration=8" \
    -ss 8 -i "$sound" -map 0:v -map 1:a -frames:a 375 \
    -c:v libx264 -profile:v baseline -preset veryslow -pix_fmt yuv420p -b:v 280k -maxrate 320k -bufsize 320k \
    -g 25 -keyint_min 25 -sc_threshold 0 -bf 0 \
    -c:a copy \
    -map_metadata -1 -fflags +bitexact -flags:v +bitexact \
    -flvflags no_sequence_end+no_duration_filesize -f flv demo.flv
