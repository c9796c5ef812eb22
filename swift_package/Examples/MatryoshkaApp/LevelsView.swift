import MatryoshkaDiffusion
import SwiftUI

/// The pictures of all levels. It is drawn again only when they change, not at every keystroke in the
/// prompt beside it.
struct LevelsView: View, Equatable {
  let pictures: [Picture]

  var body: some View {
    HStack(alignment: .bottom) {
      ForEach(pictures.indices, id: \.self) { level in
        if let image = pictures[level].cgImage {
          Image(image, scale: 1, label: Text("\(pictures[level].width) pixels")).interpolation(.none)
        }
      }
    }
    .frame(minHeight: 256)
  }
}
