#!/bin/sh
# Makes the clips beside this script.  They are small and last 4 s each: what counts is their shape.
#
#   h264_aac.flv    H.264 with B frames (packets are reordered, composition times differ) and AAC
#   hevc_aac.flv    HEVC, which only enhanced RTMP can carry, and AAC
#   av1_opus.flv    AV1 and Opus: enhanced RTMP for both kinds
#   aac.flv         sound alone: no keyframe tells where to begin
#
# A keyframe each half second, so that a viewer who comes late starts soon.  no_sequence_end: a live stream has none.
# Needs an ffmpeg that muxes enhanced RTMP (the one in imageio-ffmpeg does).
set -eu
cd "$(dirname "$0")"
ffmpeg="${FFMPEG:-ffmpeg}"
make() {
    clip="$1"
    shift
    "$ffmpeg" -hide_banner -loglevel warning -y \
        -f lavfi -i "testsrc2=size=192x108:rate=25:duration=4" \
        -f lavfi -i "sine=frequency=440:beep_factor=4:sample_rate=48000:duration=4" \
        "$@" -b:a 32k -ac 1 -map_metadata -1 -fflags +bitexact -flags:v +bitexact -flags:a +bitexact \
        -flvflags no_sequence_end+no_duration_filesize -f flv "$clip"
}
make h264_aac.flv -c:v libx264 -preset medium -b:v 60k -pix_fmt yuv420p -g 12 -bf 2 -c:a aac
make hevc_aac.flv -c:v libx265 -preset medium -b:v 60k -pix_fmt yuv420p -g 12 -x265-params log-level=error:keyint=12 -c:a aac
make av1_opus.flv -c:v libaom-av1 -cpu-used 8 -b:v 60k -pix_fmt yuv420p -g 12 -c:a libopus
make aac.flv -vn -c:a aac
