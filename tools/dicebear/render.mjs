// Render avatars on a transparent ground: JSON lines on standard input, raw pixels on standard output.
//
//   node render.mjs SIZE < looks.jsonl > pixels.rgba
//
// Each line holds options of DiceBear, among them the seed, which decides all parts and colours. Each gives
// SIZE * SIZE * 4 bytes, RGBA with premultiplied alpha, row by row.

import { createInterface } from 'node:readline';
import { createAvatar } from '@dicebear/core';
import * as personas from '@dicebear/personas';
import { Resvg } from '@resvg/resvg-js';
import { writeAll } from '../write_all.mjs';

const size = Number(process.argv[2]);
const resvgOptions = { fitTo: { mode: 'width', value: size }, font: { loadSystemFonts: false } };
for await (const line of createInterface({ input: process.stdin })) {
  if (line) writeAll(new Resvg(createAvatar(personas, JSON.parse(line)).toString(), resvgOptions).render().pixels);
}
