import MatryoshkaDiffusion
import SwiftUI

/// The pictures or clips of all levels. It is drawn again only when they change, not at every keystroke in
/// the prompt beside it.
struct LevelsView: View, Equatable {
  let pictures: [Picture]
  /// Empty where pictures are made.
  let clips: [Clip]

  var body: some View {
    HStack(alignment: .bottom) {
      if clips.isEmpty {
        ForEach(pictures.indices, id: \.self) { level in
          if let image = pictures[level].cgImage {
            Image(image, scale: 1, label: Text("\(pictures[level].width) pixels")).interpolation(.none)
          }
        }
      } else {
        ForEach(clips.indices, id: \.self) { ClipView(clip: clips[$0]) }
      }
    }
    .frame(minHeight: 256)
  }
}
