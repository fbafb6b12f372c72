"use strict";
// Maps of findings over the template. What is hidden is decided here, by the value of each voxel; NiiVue is given the place
// of each value on the colour scale, so that a colour on a slice is always one of the bar.
(() => {
  const page = window.nilatent;
  const { whole, unpacked, nifti, image, opened, cannot } = page.volumes;
  const box = document.getElementById("map-viewer");
  const settings = JSON.parse(box.querySelector('script[type="application/json"]').textContent);
  const part = (role) => box.querySelector(`[data-role="${role}"]`);
  const LAST = 255;
  const SMALL = { maximumSignificantDigits: 3 };
  const words = (value) => Number(value).toLocaleString("en-GB", SMALL).replace("-", "−");

  // Place 0 is nothing at all, 1 to 255 are the scale.
  const table = ({ R, G, B, I }) => ({
    R: [R[0], ...R], G: [G[0], ...G], B: [B[0], ...B], A: [0, ...R.map(() => 255)], I: [0, ...I.map((step) => 1 + Math.round((step * (LAST - 1)) / LAST))],
  });
  const times = (matrix, [x, y, z]) => [0, 4, 8].map((row) => matrix[row] * x + matrix[row + 1] * y + matrix[row + 2] * z + matrix[row + 3]);

  let ready = null;
  let now = null;
  let asked = 0;

  const start = async () => {
    const view = await opened(box.querySelector("canvas"), Object.fromEntries(Object.entries(settings.colours).map(([name, map]) => [name, table(map)])));
    view.opts.isColorbar = false;
    view.opts.isNearestInterpolation = true;
    view.setMultiplanarLayout(3);
    view.onLocationChange = ({ mm }) => tellPlace([...mm].slice(0, 3));
    const under = await unpacked(document.querySelector('script[data-region-map="template"]').textContent);
    view.addVolume(await image(nifti(settings.template, under), "template", { colormap: "gray" }));
    return view;
  };

  const valueAt = (mm) => {
    const at = times(now.to_voxel, mm).map(Math.round);
    const [nx, ny] = now.shape;
    if (at.some((place, axis) => place < 0 || place >= now.shape[axis])) return 0;
    return now.codes[at[0] + nx * (at[1] + ny * at[2])] * now.slope;
  };
  const tellPlace = (mm) => {
    if (!now) return;
    const value = valueAt(mm);
    const place = `x ${mm[0].toFixed(0)}, y ${mm[1].toFixed(0)}, z ${mm[2].toFixed(0)} mm`.replaceAll("-", "−");
    part("place").textContent = `${place}: ${value === 0 ? "no value" : words(value)}`;
  };

  const seen = (threshold) => {
    const places = new Uint8Array(now.codes.length);
    let farthest = -1;
    now.codes.forEach((code, voxel) => {
      const value = code * now.slope;
      // Half a step is what the code is exact to: a value on the threshold may lie that much below it here.
      if (code === 0 || Math.abs(value) < threshold - now.slope / 2) return;
      const share = (value - now.low) / (now.high - now.low);
      places[voxel] = 1 + Math.round(Math.min(1, Math.max(0, share)) * (LAST - 1));
      if (farthest < 0 || Math.abs(code) > Math.abs(now.codes[farthest])) farthest = voxel;
    });
    return { places, farthest };
  };

  const drawBar = (threshold) => {
    const { R, G, B, I } = settings.colours[now.colours];
    const share = (value) => Math.min(1, Math.max(0, (value - now.low) / (now.high - now.low)));
    const stops = I.map((step, number) => `rgb(${R[number]} ${G[number]} ${B[number]}) ${((100 * step) / LAST).toFixed(1)}%`);
    const [from, to] = [-threshold, threshold].map((value) => `${(100 * share(value)).toFixed(2)}%`);
    const hidden = threshold > 0 ? `linear-gradient(to right, transparent ${from}, #000 ${from} ${to}, transparent ${to}), ` : "";
    part("colours").style.background = `${hidden}linear-gradient(to right, ${stops.join(", ")})`;
    part("low").textContent = words(now.low);
    part("high").textContent = words(now.high);
    part("middle").textContent = page.visible(now.label);
    const kept = threshold > 0 ? `, values nearer to 0 than ${words(threshold)} hidden` : "";
    box.querySelector(".map-bar").setAttribute("aria-label", page.visible(`Colours from ${words(now.low)} to ${words(now.high)}: ${now.label}${kept}`));
  };

  const draw = async (mine) => {
    const threshold = Math.max(0, Number(part("threshold").value) || 0);
    drawBar(threshold);
    const { places, farthest } = seen(threshold);
    const none = farthest < 0 ? ` No value is as far from 0 as ${words(threshold)}.` : "";
    part("said").textContent = page.visible(`${now.label}.${none}`);
    const view = await ready;
    const over = await image(nifti(now.shown, places), "map", { colormap: now.colours, cal_min: 0, cal_max: LAST });
    if (mine !== asked) return;
    while (view.volumes.length > 1) view.removeVolumeByIndex(1);
    view.addVolume(over);
    Object.assign(view.volumes[1], { cal_min: 0, cal_max: LAST });
    view.updateGLVolume();
    box.dataset.shown = `${now.name} ${threshold}`;
    return { view, farthest };
  };

  const show = async (name) => {
    asked += 1;
    const mine = asked;
    box.dataset.shown = "";
    try {
      await whole;
      ready ??= start();
      const view = await ready;
      const codes = new Int16Array((await unpacked(document.querySelector(`script[data-map="${CSS.escape(name)}"]`).textContent)).buffer);
      if (mine !== asked) return;
      now = { ...settings.maps[name], name, codes };
      part("threshold").value = String(now.threshold);
      part("meaning").textContent = now.meaning ? `(${words(now.threshold)} is ${now.meaning})` : "";
      const { farthest } = (await draw(mine)) ?? {};
      if (mine !== asked) return;
      const [nx, ny] = now.shape;
      const at = farthest < 0 ? null : times(now.to_mm, [farthest % nx, Math.floor(farthest / nx) % ny, Math.floor(farthest / (nx * ny))]);
      if (at) {
        view.scene.crosshairPos = view.mm2frac(at);
        view.drawScene();
        tellPlace(at);
      } else part("place").textContent = "";
      view.canvas.setAttribute("aria-label", page.visible(`${now.label}, three slices`));
    } catch (error) {
      part("said").textContent = cannot(error);
    }
  };

  for (const choice of document.querySelectorAll("[data-maps]")) {
    choice.hidden = false;
    choice.querySelector("select")?.addEventListener("change", (event) => {
      document.querySelectorAll("[data-maps] select").forEach((other) => { if (other !== event.target) other.value = ""; });
      box.hidden = !event.target.value;
      if (box.hidden) return;
      choice.append(box);
      show(event.target.value);
    });
  }
  part("threshold").addEventListener("change", () => {
    if (!now) return;
    asked += 1;
    draw(asked).catch((error) => { part("said").textContent = cannot(error); });
  });
  part("save").addEventListener("click", () => {
    if (now) page.save(`${now.name}.nii`, nifti(now.header, now.codes), "application/octet-stream");
  });
  part("close").addEventListener("click", () => {
    box.hidden = true;
    document.querySelectorAll("[data-maps] select").forEach((one) => { one.value = ""; });
  });
})();
