// What the renderers share: writing to standard output.

import { writeSync } from 'node:fs';

/** Write all bytes, also where standard output is a pipe that is full for the moment. */
export function writeAll(bytes) {
  let done = 0;
  while (done < bytes.length) {
    try {
      done += writeSync(1, bytes, done);
    } catch (error) {
      if (error.code !== 'EAGAIN') throw error;
    }
  }
}
