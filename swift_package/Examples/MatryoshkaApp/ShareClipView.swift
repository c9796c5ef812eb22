import Foundation
import MatryoshkaDiffusion
import SwiftUI

/// Shares a clip as a movie, which plays everywhere, or as an animated PNG, which holds every pixel and the
/// recipe that `mdm sample --like` reads.
struct ShareClipView: View {
  let clip: Clip
  let recipe: Recipe
  @State private var files: [URL] = []
  @State private var failure: String?

  var body: some View {
    HStack {
      ForEach(files, id: \.self) { ShareLink($0.pathExtension, item: $0) }
      if let failure { Text(failure).font(.footnote) }
    }
    .task(id: clip.frames) { await write() }
  }

  private func write() async {
    files = []
    do {
      let folder = FileManager.default.temporaryDirectory
      let (png, mp4) = (folder.appending(path: "clip.png"), folder.appending(path: "clip.mp4"))
      var lossless = try APNGWriter(url: png, fps: clip.fps, text: recipe.text)
      try await clip.write(with: &lossless)
      var movie = try MovieWriter(url: mp4, fps: clip.fps)
      try await clip.write(with: &movie)
      files = [mp4, png]
    } catch {
      failure = error.localizedDescription
    }
  }
}
