#!/bin/sh
# Run by mmdebstrap in the new root: makes a repository of the packages in /repository, from which apt can
# install them, as `deb [trusted=yes] URL-OF-THE-FOLDER ./`. Tests do.
set -eu
cd /repository
for file in *.deb; do
    dpkg-deb --field "$file"
    echo "Filename: ./$file"
    echo "Size: $(wc -c <"$file")"
    echo "SHA256: $(sha256sum "$file" | cut -d' ' -f1)"
    echo
done >Packages
