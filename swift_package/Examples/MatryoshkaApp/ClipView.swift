import MatryoshkaDiffusion
import SwiftUI

/// Plays a clip, again and again.
struct ClipView: View {
  let clip: Clip

  var body: some View {
    TimelineView(.periodic(from: .now, by: 1 / Double(clip.fps))) { context in
      if let image = clip.frame(at: context.date.timeIntervalSinceReferenceDate).cgImage {
        Image(image, scale: 1, label: Text("\(clip.frames.count) frames")).interpolation(.none)
      }
    }
  }
}
