// SPDX-License-Identifier: Apache-2.0
'use strict';
(() => {
  const data = document.getElementById('moments');
  if (!data) return;
  const moments = JSON.parse(data.textContent);
  const find = (id) => document.getElementById(id);
  const slider = find('slider');
  const button = find('play');
  let timer = null;

  const show = (index) => {
    const moment = moments[index];
    find('camera').src = find('under').src = moment.camera;
    find('probability').src = moment.probability;
    find('mask').src = moment.mask;
    for (const name of ['time', 'height', 'threshold', 'share', 'phase', 'asked']) {
      find('s-' + name).textContent = moment[name];
    }
    const mark = find('cut');
    mark.hidden = moment.cut === null;
    if (moment.cut !== null) mark.style.left = (100 * moment.cut) + '%';
    slider.value = index;
    slider.setAttribute('aria-valuetext', moment.time + ', ' + moment.height);
  };
  const stop = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = 'Play';
  };
  button.addEventListener('click', () => {
    if (timer !== null) { stop(); return; }
    button.textContent = 'Pause';
    if (+slider.value === moments.length - 1) show(0);
    timer = setInterval(() => {
      const next = +slider.value + 1;
      if (next >= moments.length) { stop(); return; }
      show(next);
    }, 600);
  });
  slider.addEventListener('input', () => { stop(); show(+slider.value); });
  show(+slider.value);
})();
