// Render toon-head avatars on a transparent ground: JSON lines on standard input, raw pixels on standard output.
//
//   node render.mjs SIZE < looks.jsonl > pixels.rgba
//
// Each line gives one look: rotation (degrees), scale, shift_x, shift_y (parts of the picture), the part names and
// the colours as six hex digits. Each look gives SIZE * SIZE * 4 bytes, RGBA with premultiplied alpha, row by row.
// Nothing here is random: every choice comes from the line.

import { createInterface } from 'node:readline';
import * as toonHead from '@dicebear/toon-head';
import { Resvg } from '@resvg/resvg-js';
import { writeAll } from '../write_all.mjs';

const CANVAS = 768; // side of the design's own drawing
const PIVOT = [384, 400]; // middle of the face: rotation and scale leave this point in place
const HOME = [384, 428]; // where the pivot lies in the picture when both shifts are 0
const BASE_SCALE = 0.94; // scale 1 of the data set, in units of the design
const FLOOR = 1400; // the drawing ends near y = 880; the bust is continued to here so that it never floats

// The style draws its parts through a random source; this one always takes the single option it is given.
const noChance = { pick: (values) => values[0], bool: (likelihood) => likelihood === 100 };

const rectangle = (left, right, top, fill) =>
  `<path d="M${left} ${top}H${right}V${FLOOR}H${left}Z" fill="${fill}"/>`;

/** Continue the bust below the lower edge of the design, part by part. */
function bustExtension(look) {
  const skin = `#${look.skin_color}`;
  const clothes = `#${look.clothes_color}`;
  if (look.clothes_style === 'dress') {
    return rectangle(124.5, 644.5, 881, skin) + rectangle(238, 530, 773, clothes);
  }
  if (look.clothes_style === 'openJacket') {
    const shadow = `<path d="M335.5 879H443.5V${FLOOR}H335.5Z" fill="black" fill-opacity="0.2"/>`;
    return rectangle(108, 661, 879, clothes) + shadow;
  }
  const [left, right, top] = look.clothes_style === 'turtleNeck' ? [115, 668, 891] : [124.5, 644.5, 881];
  return rectangle(left, right, top, clothes);
}

function options(look) {
  return {
    body: ['body'],
    head: ['head'],
    hair: [look.hair_style],
    hairProbability: 100,
    rearHair: [look.rear_hair_style],
    rearHairProbability: look.rear_hair_style === null ? 0 : 100,
    beard: [look.beard_style],
    beardProbability: look.beard_style === null ? 0 : 100,
    eyes: [look.eyes],
    eyebrows: [look.eyebrows],
    mouth: [look.mouth],
    clothes: [look.clothes_style],
    skinColor: [look.skin_color],
    hairColor: [look.hair_color],
    clothesColor: [look.clothes_color],
  };
}

function svg(look) {
  const { body } = toonHead.create({ prng: noChance, options: options(look) });
  const x = HOME[0] + look.shift_x * CANVAS;
  const y = HOME[1] + look.shift_y * CANVAS;
  const move =
    `translate(${x} ${y}) rotate(${look.rotation}) scale(${look.scale * BASE_SCALE}) ` +
    `translate(${-PIVOT[0]} ${-PIVOT[1]})`;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${CANVAS} ${CANVAS}" fill="none">` +
    `<g transform="${move}">${body}${bustExtension(look)}</g></svg>`
  );
}

const size = Number(process.argv[2]);
if (!Number.isInteger(size) || size < 1) {
  process.stderr.write(`size is ${process.argv[2]}; a whole number of pixels is needed: node render.mjs 64\n`);
  process.exit(2);
}
const resvgOptions = { fitTo: { mode: 'width', value: size }, font: { loadSystemFonts: false } };
for await (const line of createInterface({ input: process.stdin })) {
  if (line) writeAll(new Resvg(svg(JSON.parse(line)), resvgOptions).render().pixels);
}
